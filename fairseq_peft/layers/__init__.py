"""What the plugin's models compute with: attention that calls its projections, and dropout."""
