"""Key schemas and left-out values, for those who deal with trust; they live beside the keys, since stored entries hold them too."""

from fi_cachestore.keys.schema import KeySchema, LeftOut, left_out_digest, left_out_value

__all__ = ["KeySchema", "LeftOut", "left_out_digest", "left_out_value"]
