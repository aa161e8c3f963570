"""Files that come with the package: the small pretrained LLaMA that the demo tunes."""
