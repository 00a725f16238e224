"""File formats: images, masks, videos, lists, and how files of a data set pair up."""
