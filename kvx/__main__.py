"""python -m kvx: the stages by name, as the console script kvx."""

from kvx.cli.entry import kvx

if __name__ == "__main__":
    kvx()
