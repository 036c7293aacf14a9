"""Benchmarks: of speed (`kiwi bench speed`) and of quality (`openve`, `refvie`, `imgedit`, `report`)."""
