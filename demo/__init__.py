"""The embedded default: a tiny Vietnamese and Hindi recogniser, its test set, and the scripts that made both."""
