from kvx.verify.main import main

if __name__ == "__main__":
    main()
