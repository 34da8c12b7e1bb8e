from jail.server import EXIT as EXIT_CODES  # noqa
