"""What every script shares and none of them is about: config, tokenizers, downloads, files, run records."""
