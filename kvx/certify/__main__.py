from kvx.certify.main import main

if __name__ == "__main__":
    main()
