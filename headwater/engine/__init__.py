"""Fast engines: Config and weights become a flat program that the native core runs. generate.py is the reference."""
