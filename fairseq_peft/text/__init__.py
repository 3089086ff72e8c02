"""Raw text before it is binarised: reading, checking, demo data. Neither torch nor fairseq."""
