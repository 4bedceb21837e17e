"""The host's version."""


def git_tag() -> str:
    return "v1.9.4"
