"""The only code that knows sockets, gevent or Locust. Importing tokenswarm.shell monkey-patches nothing by itself."""
