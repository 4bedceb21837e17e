"""What AUTOMATIC1111's WebUI asks of extensions before it reads its command line."""


def preload(parser):
    """Adds no argument yet: the tab that would need one is coming."""
