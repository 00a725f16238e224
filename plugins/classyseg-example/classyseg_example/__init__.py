"""The smallest real plugin of classyseg. `setup.cfg` names the classes of these modules as entry points."""
