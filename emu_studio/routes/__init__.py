"""The addresses of the studio: pages for people, and the JSON that their scripts speak."""

from emu_studio.routes import api, captions, lead, pages

PARTS = (api.router, captions.router, pages.router, lead.router)
