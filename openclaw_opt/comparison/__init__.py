"""What can be said of a number, and of two: evidence with its interval, budgets, and the comparison of two artifacts.

    rows.py        a report's rows by name; the items and the samples that a number is made of
    evidence.py    a number, or its change, with an interval at the confidence asked for
    comparable.py  whether two reports can be compared, number by number, and why not
    budgets.py     a budget and its evidence → met, missed or undecided
    spending.py    which pass and which layers spent it
    verdicts.py    two reports → better, worse, equivalent or undecided, number by number
    turns.py       times two engines on this machine in turns
    records.py     the comparison as JSON; forms.py its table and its Markdown

All but turns.py is pure.
"""
