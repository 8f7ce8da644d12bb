"""What every call goes through, whatever its shape."""
