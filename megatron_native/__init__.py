"""megatron-native: raw Arabic dumps in, a natively aligned LLaMA out.

Importing the package costs nothing: torch and megatron-core are imported by the modules that use them.
"""

__version__ = "0.1.0"
