"""What fairseq itself leaves out or gets wrong, mended while the plugin is loaded."""
