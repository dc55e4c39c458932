"""From files of bars to arrays that a model can learn from: numpy and TA-Lib, no torch.

The door is `prepare.prepare`. In the order of the data: csv_table > bars > indicators, fuzzy,
align > features, labels > splits > scaling > prepare.
"""
