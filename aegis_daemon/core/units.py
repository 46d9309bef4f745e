from aegis_daemon.config.units import go_duration, short_duration  # TEMP: units moves here
