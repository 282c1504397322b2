"""Where inferscope meets other tools."""
