"""A run on Locust: master, workers, phases, what goes along with them. Importing this patches nothing by itself."""
