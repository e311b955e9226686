"""What each verb of the command line does: one small file a group of verbs, imported by cli.py's table when called."""
