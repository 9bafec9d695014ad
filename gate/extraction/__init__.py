"""Features by the thousand: winners of a screening, or any technique, extracted as fast as the machine allows."""
