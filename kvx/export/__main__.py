from kvx.cli.entry import start

if __name__ == "__main__":
    start("export")
