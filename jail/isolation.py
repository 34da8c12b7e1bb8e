from jail.server import readable_paths  # noqa
