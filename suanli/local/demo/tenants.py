"""The two institutions of the demonstration. They exist nowhere else."""

from __future__ import annotations

from protos.suanli.v1 import admin_pb2, common_pb2, prices_pb2
from suanli.local.control import Control
from suanli.local.demo.findings import Tenant

UNIVERSITY = Tenant("beishan-university", "Beishan University", "learning-science", "lin", "east")
MINISTRY = Tenant("minglan-ministry", "Ministry of Education of Minglan", "school-quality", "zhao", "west")
TENANTS = (UNIVERSITY, MINISTRY)

PRICES = """\
# Prices of the demonstration: a fen for a core second, so that jobs of seconds cost something that can be seen.
name: demonstration
currency: CNY
rates:
  - cpu_core_hour: 36
    memory_gib_hour: 3.6
discounts:
  - {institution: minglan-ministry, percent: 10}
"""


def put_prices(control: Control) -> None:
    """Have all that is used from now on cost something."""
    request = prices_pb2.PutPriceListRequest(document=PRICES, comment="For the demonstration.")
    control.call(control.usage.PutPriceList, request)


def create(control: Control, tenant: Tenant) -> str:
    """Make the institution, its project and a researcher, and return the researcher's key."""
    admin = control.admin
    institution = admin_pb2.Institution(id=tenant.id, title=tenant.title, home_region=tenant.region)
    control.call(admin.PutInstitution, admin_pb2.PutInstitutionRequest(institution=institution))
    project = admin_pb2.Project(institution=tenant.id, id=tenant.project)
    control.call(admin.PutProject, admin_pb2.PutProjectRequest(project=project))
    user = admin_pb2.User(id=tenant.user, institution=tenant.id, role=common_pb2.ROLE_RESEARCHER)
    control.call(admin.PutUser, admin_pb2.PutUserRequest(user=user))
    request = admin_pb2.CreateApiKeyRequest(user=tenant.user, title="demonstration")
    return str(control.call(admin.CreateApiKey, request).secret)
