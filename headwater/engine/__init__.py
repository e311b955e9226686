"""Fast engines: Config and weights lowered to a flat program that the native core runs. generate.py is the reference."""
