"""Who is believed: keys and signatures, the policy of whoever loads, provenance in the form of in-toto and SLSA."""
