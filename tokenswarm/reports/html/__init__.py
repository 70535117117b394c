"""report.html: `page.py` puts it together, each other file is a part of it, and none asks the network."""
