"""Generated from proto/stigmer/v1 by scripts/proto; never edited."""
