"""Why a network does not learn: measurements, their theory, and verdicts with a cure."""
