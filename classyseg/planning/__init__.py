"""From a folder of data to a whole config: facts of data and machine, a table of rules, a short measurement."""
