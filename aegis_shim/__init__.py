"""The shim: standard library only; copies or hands over bytes and never decides."""
