"""Files, images, options, hardware: what everything else stands on."""
