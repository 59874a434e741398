from aiohttp import web

from server import answer, hookimpl, identity_of, signed_in

routes = web.RouteTableDef()


@routes.get("/api/hello")
@signed_in
async def hello(request):
    return answer({"hello": identity_of(request).user_id})


register_handlers = hookimpl(lambda: routes, specname="register_handlers")
