"""From numbers to files and text: rows, the results folder, the manifest, Markdown, the terminal."""
