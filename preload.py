"""What AUTOMATIC1111's WebUI asks of extensions before it reads its command line."""


def preload(parser):
    """Adds our arguments."""
    parser.add_argument(
        "--dreambooth-dir",
        metavar="FOLDER",
        default=None,
        help="DreamBooth: folder for runs, uploads and presets (default: outputs/dreambooth)",
    )
    parser.add_argument(
        "--dreambooth-host",
        metavar="NAMES",
        default=None,
        help="DreamBooth: names under which a proxy offers the WebUI, with commas between them",
    )
