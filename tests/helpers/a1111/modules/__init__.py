"""What the extension asks of AUTOMATIC1111's WebUI, and nothing more: a stand-in for tests."""
