"""HTTP in front of a model that has adapters: what may be asked, the answers, and the server."""
