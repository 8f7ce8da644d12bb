"""Provider clients. Each imports its SDK at its first use, never when the process starts."""
