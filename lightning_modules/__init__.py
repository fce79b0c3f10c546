"""One LightningModule a method, on one shared base class."""
