"""The diffusion engine. Knows no gRPC and no asyncio; usable as a library."""
