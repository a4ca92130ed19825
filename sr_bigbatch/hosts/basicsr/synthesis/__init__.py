"""Real-ESRGAN's low-resolution images, made of photographs during the training."""
