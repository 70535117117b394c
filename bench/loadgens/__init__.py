"""Other load generators, a file each: its pinned version, how it is installed and run, how its report is read."""
