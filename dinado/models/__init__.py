"""Language models: the base, what is added to it, and where pretrained ones come from."""
