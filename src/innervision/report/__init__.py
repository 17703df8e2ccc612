"""What runs found, as tables and figures. Reads run folders and needs no model."""
