"""Machines that share nothing but SSH: what they made is fetched, checked and merged."""
