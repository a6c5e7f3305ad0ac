"""Export by OTLP, with OpenTelemetry's SDK. Imported only where it is asked for."""
