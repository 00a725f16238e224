"""Writing any data set in the forms that other tools read: `classyseg data export`."""
