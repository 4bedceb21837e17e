"""What AUTOMATIC1111's WebUI asks of extensions before it reads its command line."""


def preload(parser):
    """Adds our arguments."""
    parser.add_argument(
        "--dreambooth-dir",
        metavar="FOLDER",
        default=None,
        help="DreamBooth: folder for runs, uploads and presets (default: outputs/dreambooth)",
    )
