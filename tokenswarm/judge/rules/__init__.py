"""The rules of the verdict, by what they look at: accounting, the instrument, the sample. Each is a pure function."""
